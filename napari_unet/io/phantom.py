"""The anatomy of the sample CT: how a random abdomen is shaped, filled and scanned. Called by ``samples`` only.

Everything is arithmetic on one grid; there are no files, no labels and no scan types here. Shapes are level functions:
about the distance in mm to the surface, positive inside. Coordinates are LPS millimetres from the middle of the grid:
x rises to the patient's left, y to the back, z to the head.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Field = NDArray[np.floating]
Point = tuple[float, float, float]

#: Hounsfield units of what is the same in everyone.
_AIR, _LUNG, _FAT, _BILE, _MUSCLE, _CORTICAL_BONE = -1000, -840, -100, 12, 58, 450


class Grid:
    """Coordinates of every voxel in a randomly deformed, randomly sized patient, and shapes drawn in them.

    Parameters
    ----------
    rng : Generator
        Source of the deformation.
    shape : tuple of int
        Voxels along z, y, x.
    spacing : tuple of float
        Millimetres along z, y, x.
    """

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int, int], spacing: Point) -> None:
        self.rng = rng
        self.axes = [
            ((np.arange(n) - (n - 1) / 2) * step).astype(np.float32) for n, step in zip(shape, spacing, strict=True)
        ]
        size = np.float32(rng.uniform(0.9, 1.06))
        z, y, x = np.meshgrid(*self.axes, indexing="ij", sparse=True)
        self.x, self.y, self.z = ((c + self.waves(shortest=90, amplitude=2.8)) / size for c in (x, y, z))

    def waves(self, shortest: float, amplitude: float, n: int = 8) -> Field:
        """Return a smooth random field: a sum of products of cosines, cheap because it is separable.

        Parameters
        ----------
        shortest : float
            Shortest wavelength, mm.
        amplitude : float
            Standard deviation of the field.
        n : int
            Number of terms.
        """
        factors = []
        for axis in self.axes:
            wavelength = shortest * self.rng.uniform(1, 3, (n, 1))
            phase = self.rng.uniform(0, 2 * np.pi, (n, 1))
            factors.append(np.cos(2 * np.pi * axis / wavelength + phase).astype(np.float32))
        z, y, x = factors
        planes = (z[:, :, None] * y[:, None, :]).reshape(n, -1)
        # Each product of three cosines has a variance of 1/8.
        field = (planes.T @ x).reshape(*(len(a) for a in self.axes))
        return field * np.float32(amplitude * np.sqrt(8 / n))

    def ellipsoid(self, centre: Point, radii: Point, tilt: float = 0.0, turn: float = 0.0) -> Field:
        """Return the level of an ellipsoid; centre and radii in the order x, y, z.

        Parameters
        ----------
        centre, radii : (x, y, z) in mm
            An infinite radius makes a cylinder along that axis.
        tilt : float
            Rotation in the coronal plane, degrees: positive leans the upper pole towards +x.
        turn : float
            Rotation in the axial plane, degrees: positive turns +x towards +y.
        """
        x, y, z = self.x - np.float32(centre[0]), self.y - np.float32(centre[1]), self.z - np.float32(centre[2])
        if tilt:
            c, s = np.float32(np.cos(np.radians(tilt))), np.float32(np.sin(np.radians(tilt)))
            x, z = c * x - s * z, s * x + c * z
        if turn:
            c, s = np.float32(np.cos(np.radians(turn))), np.float32(np.sin(np.radians(turn)))
            x, y = c * x + s * y, c * y - s * x
        rx, ry, rz = (np.float32(r) for r in radii)
        level = np.float32(1) - np.sqrt((x / rx) ** 2 + (y / ry) ** 2 + (z / rz) ** 2)
        return level * np.float32(min(radii))

    def capsule(self, start: Point, end: Point, radius: float) -> Field:
        """Return the level of a rounded rod between two points in the order x, y, z (mm)."""
        a, b = np.asarray(start, np.float32), np.asarray(end, np.float32)
        axis = b - a
        offsets = (self.x - a[0], self.y - a[1], self.z - a[2])
        along = sum(o * d for o, d in zip(offsets, axis, strict=True)) / np.float32(axis @ axis)
        along = np.clip(along, 0, 1)
        square = sum((o - along * d) ** 2 for o, d in zip(offsets, axis, strict=True))
        return np.float32(radius) - np.sqrt(square)

    def below_plane(self, point: Point, normal: Point) -> Field:
        """Return the level of the half-space that a normal (x, y, z) points away from."""
        unit = (np.asarray(normal) / np.linalg.norm(normal)).astype(np.float32)
        p = np.asarray(point, np.float32)
        return -((self.x - p[0]) * unit[0] + (self.y - p[1]) * unit[1] + (self.z - p[2]) * unit[2])


@dataclass(frozen=True, eq=False)
class Phantom:
    """A computed abdomen.

    Parameters
    ----------
    image : (z, y, x) float array
        Hounsfield units, with noise.
    liver, kidneys, spleen, aorta : (z, y, x) float arrays
        Level functions of the organs; they do not overlap.
    """

    image: Field
    liver: Field
    kidneys: Field
    spleen: Field
    aorta: Field


def compute(seed: int, shape: tuple[int, int, int], spacing: Point) -> Phantom:
    """Compute one patient on a grid.

    Parameters
    ----------
    seed : int
        Which patient.
    shape : tuple of int
        Voxels along z, y, x.
    spacing : tuple of float
        Millimetres along z, y, x.
    """
    return _Patient(seed, shape, spacing).scan()


class _Patient:
    """One random patient, painted from the outside in: what is painted later lies on top."""

    def __init__(self, seed: int, shape: tuple[int, int, int], spacing: Point) -> None:
        self.rng = rng = np.random.default_rng([2015, seed])
        self.grid = Grid(rng, shape, spacing)
        self.image: Field = np.full(shape, _AIR, np.float32)
        grain = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), (0.7, 1.1, 1.1))
        self.grain = grain / grain.std()
        self.half_width = rng.uniform(132, 146)
        self.half_depth = self.half_width * rng.uniform(0.69, 0.76)
        self.fat = rng.uniform(7, 22)
        self.spine_y = self.half_depth - self.fat - rng.uniform(46, 52)
        skin = self._skin_level()
        self.cavity = skin - np.float32(self.fat + rng.uniform(9, 13))
        self._paint(skin, _FAT, 6)
        self._paint(np.minimum(skin, 2.5 - skin), 10)
        self._paint(skin - np.float32(self.fat), _MUSCLE, 8)
        self._paint(self.cavity, _FAT + 5, 8)
        self.diaphragm = self._diaphragm()

    def scan(self) -> Phantom:
        """Place the organs, fill the rest, and image it."""
        spine = self._spine_level()
        kidneys = self._kidneys()
        aorta, cava = self._great_vessels()
        room = np.minimum(np.minimum(self.cavity - 2, self.diaphragm - 3), -np.maximum(aorta, cava) - 4)
        room = np.minimum(room, -np.maximum(spine + 10, kidneys + 4))
        liver = np.minimum(self._liver(), room)
        spleen = np.minimum(np.minimum(self._spleen(), room), -liver - 4)

        self._paint_thorax()
        self._paint_bowel()
        self._paint_muscles()
        self._paint_bones(spine)
        cava_hu = self.rng.uniform(120, 165)
        self._paint(cava, cava_hu, 4)
        self._fill_liver(liver, cava_hu)
        self._fill_kidneys(kidneys)
        self._paint(spleen, self.rng.normal(128, 9), 6)
        self._paint(aorta, self.rng.uniform(175, 260), 4)
        return Phantom(self._acquire(), liver, kidneys, spleen, aorta)

    def _paint(self, level: Field, hu: float, texture: float = 0.0) -> None:
        inside = level > 0
        self.image[inside] = np.float32(hu) + np.float32(texture) * self.grain[inside]

    def _about(self, *values: float, by: float = 5.0) -> Point:
        """Return a point (x, y, z) moved at random by a standard deviation in mm."""
        x, y, z = np.asarray(values) + self.rng.normal(0, by, 3).clip(-2 * by, 2 * by)
        return float(x), float(y), float(z)

    def _sized(self, *values: float, by: float = 0.09) -> Point:
        """Return radii (x, y, z) scaled at random: together, and each a little."""
        x, y, z = np.asarray(values) * self.rng.uniform(1 - by, 1 + by) * self.rng.uniform(1 - by, 1 + by, 3)
        return float(x), float(y), float(z)

    def _skin_level(self) -> Field:
        exponent = np.float32(2.4)
        ring = (np.abs(self.grid.x) / np.float32(self.half_width)) ** exponent
        ring = ring + (np.abs(self.grid.y) / np.float32(self.half_depth)) ** exponent
        return (1 - ring ** (1 / exponent)) * np.float32(self.half_depth)

    def _diaphragm(self) -> Field:
        """Return the height in mm of the diaphragm above each voxel: two domes, the right one higher, and a saddle."""
        right, left = self.rng.uniform(62, 74), self.rng.uniform(54, 66)
        tops = {-66: right, 0: (right + left) / 2 - 12, 68: left}
        domes = [np.float32(top) - 26 * ((self.grid.x - side) / 62) ** 2 for side, top in tops.items()]
        return np.max(domes, axis=0) - 30 * ((self.grid.y + 5) / 75) ** 2 - self.grid.z

    def _spine_level(self) -> Field:
        return self.grid.ellipsoid((0, self.spine_y, 0), self._sized(22, 17, np.inf, by=0.05))

    def _kidneys(self) -> Field:
        both = []
        for side, height in ((-1, -36), (1, -24)):
            centre = self._about(side * 60, self.spine_y + 6, height, by=4)
            radii = self._sized(25, 23, 50)
            # The upper poles lean inwards, and the hilum faces the middle and a little forwards.
            tilt, turn = -side * self.rng.uniform(6, 18), side * self.rng.uniform(15, 40)
            body = self.grid.ellipsoid(centre, radii, tilt, turn) + self.grid.waves(35, 0.8)
            hilum = (centre[0] - side * radii[0] * 0.85, centre[1] - radii[1] * 0.45, centre[2])
            sinus = self.grid.ellipsoid(hilum, self._sized(14, 11, 20), tilt)
            both.append(np.minimum(body, -sinus))
        return np.minimum(np.maximum(*both), self.cavity - 3)

    def _great_vessels(self) -> tuple[Field, Field]:
        """Return the levels of aorta and vena cava: winding tubes in front of the spine."""
        bend = self.rng.uniform(1, 5) * np.sin(self.grid.z / 45 + self.rng.uniform(0, 6))
        x, y = self.grid.x - bend.astype(np.float32), self.grid.y
        front = self.spine_y - 17
        radius = self.rng.uniform(9.5, 13)
        aorta = radius - np.hypot(x - np.float32(self.rng.uniform(5, 12)), y - np.float32(front - radius - 2))
        flat = self.rng.uniform(0.65, 0.95)
        cava = 11 - np.hypot(x + np.float32(self.rng.uniform(18, 24)), (y - np.float32(front - 9)) / np.float32(flat))
        return aorta.astype(np.float32), np.minimum(cava, -aorta - 3).astype(np.float32)

    def _liver(self) -> Field:
        right = self.grid.ellipsoid(self._about(-66, 0, 12), self._sized(77, 86, 78))
        left = self.grid.ellipsoid(
            self._about(2, -46, 26, by=7), self._sized(68, 31, 34), tilt=self.rng.uniform(-5, 15)
        )
        # The visceral surface faces down, left and back.
        slope = tuple(np.array([0.58, 0.42, -0.70]) + self.rng.normal(0, 0.06, 3))
        whole = np.minimum(np.maximum(right, left), self.grid.below_plane(self._about(-42, 18, -12), slope))
        gallbladder = self._gallbladder = self.grid.ellipsoid(self._about(-36, -42, -8), self._sized(13, 20, 15))
        return np.minimum(whole + self.grid.waves(45, 1.8), -gallbladder - 1.5)

    def _spleen(self) -> Field:
        centre = self._about(0.61 * self.half_width, self.spine_y - 6, 26, by=4)
        body = self.grid.ellipsoid(centre, self._sized(34, 48, 50), turn=self.rng.uniform(-30, -10))
        hollow = self.grid.ellipsoid((centre[0] - 50, centre[1] - 18, centre[2]), self._sized(32, 30, 45))
        return np.minimum(body + self.grid.waves(35, 1.3), -hollow)

    def _paint_thorax(self) -> None:
        lung = np.minimum(self.cavity + 6, -self.diaphragm)
        self._paint(lung, _LUNG, 25)
        heart = np.minimum(self.grid.ellipsoid(self._about(18, -28, 92), (58, 48, 42)), self.cavity)
        self._paint(heart, self.rng.uniform(110, 160), 6)
        mediastinum = self.grid.ellipsoid((0, self.spine_y - 20, 0), (34, 34, np.inf))
        self._paint(np.minimum(mediastinum, lung), _FAT + 60, 20)

    def _paint_bowel(self) -> None:
        """Fill the belly: stomach, pancreas, colon and loops, whose contents range from gas to contrast medium."""
        rng, front = self.rng, self.spine_y - 60
        inside = np.minimum(self.cavity - 4, self.diaphragm - 4)
        self._paint(np.minimum(self._gallbladder, inside), _BILE, 3)
        for _ in range(26):
            side = rng.uniform(-75, 75)
            start = (side, rng.uniform(-55, front + 35), rng.uniform(-95, 5))
            level = self.grid.capsule(start, self._about(*start, by=16), rng.uniform(9, 15))
            self._paint_loop(np.minimum(level, inside), rng.choice([30, 45, 60, rng.uniform(90, 230), -700]))
        for x, top in ((-96, -30), (94, 5)):
            wavy = self._about(x, 12, top, by=4)
            colon = self.grid.capsule((wavy[0], wavy[1], -120), wavy, rng.uniform(15, 19))
            self._paint_loop(np.minimum(colon + self.grid.waves(25, 1.5), inside), rng.uniform(-40, 60), 70)
        pancreas = self.grid.capsule(self._about(-22, front + 26, -14), self._about(58, front + 34, 12), 10)
        self._paint(np.minimum(pancreas + self.grid.waves(20, 1.5), inside), rng.normal(98, 9), 14)
        centre = self._about(52, -26, 32)
        stomach = np.minimum(self.grid.ellipsoid(centre, self._sized(40, 30, 32), tilt=-15), inside)
        self._paint_loop(stomach, rng.uniform(15, 140))
        # Gas gathers in front, because the patient lies on the back.
        self._paint(np.minimum(stomach - 5, np.float32(centre[1] - rng.uniform(8, 16)) - self.grid.y), -900)

    def _paint_loop(self, level: Field, content: float, texture: float = 8) -> None:
        self._paint(level, 55, 6)
        self._paint(level - 3.5, content, texture)

    def _paint_muscles(self) -> None:
        psoas_top = self.rng.uniform(-25, 0)
        for side in (-1, 1):
            psoas = self.grid.ellipsoid((side * 36, self.spine_y + 2, psoas_top - 95), (18, 17, 110))
            back = self.grid.ellipsoid((side * 34, self.spine_y + 38, 0), (31, 19, np.inf))
            self._paint(np.minimum(psoas, self.cavity + 8), _MUSCLE, 8)
            self._paint(np.minimum(back, self.cavity + 12), _MUSCLE, 9)

    def _paint_bones(self, spine: Field) -> None:
        period, phase = self.rng.uniform(30, 36), self.rng.uniform(0, 6)
        beat = np.cos(2 * np.pi * self.grid.z / period + phase)
        marrow, cortex = self.rng.uniform(150, 230), self.rng.uniform(0.9, 1.1) * _CORTICAL_BONE
        self._paint(spine, 85, 5)
        vertebra = np.minimum(spine, ((beat + 0.72) * 8).astype(np.float32))
        self._paint(vertebra, cortex, 30)
        self._paint(vertebra - 2.2, marrow, 25)
        canal = self.grid.ellipsoid((0, self.spine_y + 26, 0), (11, 9, np.inf))
        arch = np.minimum(canal + 6, ((beat + 0.5) * 8).astype(np.float32))
        spinous = self.grid.capsule((0, self.spine_y + 36, 0), (0, self.spine_y + 56, 0), 4)
        self._paint(arch, cortex - 60, 30)
        self._paint(np.minimum(self._along_z(spinous), ((beat - 0.1) * 8).astype(np.float32)), cortex - 90, 30)
        self._paint(canal, 28, 4)
        # Ribs run down and forwards within the wall.
        angle = np.arctan2(np.abs(self.grid.x), self.grid.y + 10)
        stripe = np.cos(2 * np.pi * (self.grid.z / 27 + 0.9 * angle) + phase)
        in_wall = 4.0 - np.abs(self.cavity + 5.5)
        rib = np.minimum(in_wall, ((stripe - 0.6) * 6).astype(np.float32))
        rib = np.minimum(rib, np.minimum((2.2 - angle) * 40, self.grid.z + 45 + 25 * np.cos(angle)))
        self._paint(rib, cortex - 80, 30)

    def _along_z(self, level: Field) -> Field:
        """Return a shape's middle slice repeated along z."""
        return np.broadcast_to(level[level.shape[0] // 2], level.shape)

    def _fill_liver(self, liver: Field, vessel_hu: float) -> None:
        hu = self.rng.normal(112, 9)
        self._paint(liver, hu, 6)
        porta = self._about(-34, -2, 2, by=4)
        for _ in range(7):
            end = (self.rng.uniform(-120, 20), self.rng.uniform(-60, 45), self.rng.uniform(-10, 62))
            branch = self.grid.capsule(porta, end, self.rng.uniform(2.2, 4.2))
            self._paint(np.minimum(branch, liver), max(vessel_hu, hu + 25), 4)
        for _ in range(self.rng.integers(1, 3)):
            radius = self.rng.uniform(8, 15)
            deep = np.flatnonzero(liver > radius + 2)
            index = np.unravel_index(deep[self.rng.integers(len(deep))], liver.shape)
            centre = (float(self.grid.x[index]), float(self.grid.y[index]), float(self.grid.z[index]))
            lesion = self.grid.ellipsoid(centre, self._sized(radius, radius, radius)) + self.grid.waves(15, 0.8)
            self._paint(np.minimum(lesion, liver), self.rng.normal(62, 6), 7)

    def _fill_kidneys(self, kidneys: Field) -> None:
        cortex = self.rng.uniform(165, 215)
        self._paint(kidneys, cortex, 8)
        self._paint(kidneys - 8, cortex - self.rng.uniform(20, 55), 8)

    def _acquire(self) -> Field:
        """Blur by the scanner's point spread, add cupping and noise."""
        image = ndimage.gaussian_filter(self.image, (0.35, 0.6, 0.6))
        noise = ndimage.gaussian_filter(self.rng.standard_normal(image.shape, np.float32), (0, 0.45, 0.45))
        centrality = np.clip(self.cavity / np.float32(self.half_depth), 0, 1)
        sigma = self.rng.uniform(14, 20) * (0.8 + 0.5 * centrality)
        image -= np.float32(self.rng.uniform(0, 12)) * centrality
        return image + noise / noise.std() * sigma.astype(np.float32)


def pairwise_mean(field: Field) -> Field:
    """Return the means of neighbouring slices: the same patient in slices twice as thick."""
    return (field[0::2] + field[1::2]) / 2
