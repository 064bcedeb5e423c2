"""The trainer that ``-tr`` names, found as nnU-Net finds it."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO

from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_pgl.environment import variable
from nnunetv2_pgl.extension_folder import VARIABLE as EXTENSION
from nnunetv2_pgl.trainers import nnUNetTrainerPGL
from pretraining.comparison.comparison import extension_path
from pretraining.comparison.errors import ComparisonError


def find_trainer(name: str) -> type[nnUNetTrainerPGL]:
    """The class, if it can start from the checkpoints and cases of a comparison.

    Raises:
        ComparisonError: There is none of this name, or it is of another kind.
    """
    try:
        with variable(EXTENSION, extension_path()), redirect_stdout(StringIO()):  # nnU-Net tells where it looks
            found = recursive_find_trainer_class_by_name(name)
    except (RuntimeError, AssertionError) as error:
        raise ComparisonError(
            f"-tr {name}: nnU-Net finds no such trainer among its own and in {extension_path()}; add the folder "
            f"of your trainers to {EXTENSION}"
        ) from error
    if not issubclass(found, nnUNetTrainerPGL) or not found.starts_from_checkpoint:
        raise ComparisonError(
            f"-tr {name}: cannot start from the checkpoints that are compared; use nnUNetTrainerPGL or a subclass of "
            "it that starts from a checkpoint (--init random is its control)"
        )
    return found
