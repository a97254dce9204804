"""The panels of the Annotate dock, one part of the journey each: they show state and send intentions."""
