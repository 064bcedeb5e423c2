"""The end of a report: what its numbers mean."""

from __future__ import annotations

from pretraining.comparison.derived import DECODER, LONGER, SHUFFLED
from pretraining.comparison.document import Block, Heading, Items
from pretraining.comparison.results import ResultSet
from pretraining.comparison.story import Story

_DERIVED = {
    SHUFFLED: "shuffled:NAME: the encoder of NAME with the values of each tensor in another order. What it gains over "
    "random weights is no knowledge.",
    LONGER: "longer:NAME: random weights, trained longer by the computation of the pre-training of NAME (convolutions "
    "and matrix products, forward and backward). Each training is charged with all of it, which NAME itself needs only "
    "once. A trainer that stops by itself (nnUNetTrainerPGL_paper) may end before it is used up.",
    DECODER: "decoder:NAME: NAME with the decoder that its pre-training has trained.",
}


def definitions(story: Story, results: ResultSet) -> list[Block]:
    """Measures, means, intervals and tests in words."""
    lines = [
        "Dice and IoU: of the voxels of truth and prediction, per class and case.",
        "Surface: voxels of a mask with a face neighbour outside it (outside the image is outside the mask). Distances "
        "are in mm, between voxel centres, from each surface voxel to the nearest one of the other surface.",
        "HD (Hausdorff distance): the largest of these distances, in both directions. HD95: the larger of the two "
        "directions' 95th percentiles.",
        f"Surface Dice at {story.tolerance_mm:g} mm: share, over the voxels of both surfaces, of those whose distance "
        f"is at most {story.tolerance_mm:g} mm.",
        "Missed: truth not empty, prediction empty. Dice, IoU and surface Dice are 0, HD and HD95 the diagonal of the "
        "image. Missed structures are in all means.",
        "Empty truth: all measures are undefined and left out of means, whatever the prediction is. nnU-Net's own "
        "evaluation gives Dice 0 where the prediction is not empty.",
        "Average: mean over the classes that a case has, then over the cases of a run, then over runs. A run is a fold "
        "and a seed.",
        "95 % confidence interval: Student's, over the runs' means. It tells how further runs on these test cases "
        "would vary, not how other patients would.",
        *_caveats(results),
        *(text for kind, text in _DERIVED.items() if any(init.startswith(f"{kind}:") for init in story.inits)),
        "Surface Dice counts surface voxels, each alike. Published surface Dice (NSD) is often weighted by area, and "
        "differs: the numbers are not to be compared.",
        "Each initialisation is one pre-training, used by all runs: how much another one with the same options would "
        "differ is in no interval and no test. To see it, --define it again with another -seed.",
        "Difference to random: on the runs and cases that both have, so it can differ from the difference of the means "
        "where runs are missing.",
        "Undecided does not mean that there is no difference.",
        "pgl_compare chooses nothing by the test cases: nnU-Net's final checkpoint is tested, whatever came before. "
        "Settings that were chosen by a result on these test cases make their initialisation look better than it is.",
    ]
    return [Heading("Definitions"), Items(tuple(lines))]


def _caveats(results: ResultSet) -> list[str]:
    """What the intervals cannot tell with the runs there are."""
    runs = [{row.run for row in rows} for rows in results.cells.values()]
    lines = []
    if min(map(len, runs), default=0) == 1:
        lines.append(
            "Where there is one run only, there is no interval and no verdict: how much training varies is unknown."
        )
    if any(len(found) > len({fold for fold, _ in found}) for found in runs) and 1.0 in results.fractions:
        lines.append(
            "At 100 % of the labels the seeds of a fold all train on the same cases: how other training cases would "
            "do is in no interval and no test there."
        )
    if any(len(found) > len({fold for fold, _ in found}) > 1 for found in runs):
        lines.append(
            "Intervals and tests take all runs for independent. The seeds of a fold share its training cases; where "
            "folds differ more than seeds, intervals are too narrow and p values too small for other folds."
        )
    return lines
