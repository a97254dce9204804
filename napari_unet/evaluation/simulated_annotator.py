"""Annotators that stand in for a person in the effort benchmark and the demo.

They only turn a proposal into corrected labels; the loop around them is the session's.
"""

from __future__ import annotations

from numpy.typing import NDArray

from napari_unet.domain.errors import MaskError


class OracleAnnotator:
    """A person who corrects every voxel to the truth and nothing else."""

    def correct(self, proposal: NDArray, truth: NDArray) -> NDArray:
        """Return the labels that the person leaves.

        Parameters
        ----------
        proposal, truth : arrays of uint8 or uint16
            Label arrays of one shape.

        Returns
        -------
        array
            A new array equal to ``truth``, in its dtype.

        Raises
        ------
        MaskError
            The shapes differ.
        """
        if proposal.shape != truth.shape:
            raise MaskError(
                f"The proposal has shape {proposal.shape} and the truth {truth.shape}: correct masks of the same scan."
            )
        return truth.copy()
