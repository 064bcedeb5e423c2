"""PGL in one script: from a folder of scans to a pre-trained encoder from which nnU-Net can be fine-tuned.

python examples/pgl_minimal.py FOLDER mr encoder.pth

This is figure 2 of the paper (Xie et al. 2020) and nothing else. ``pgl_pretrain`` does the same at full size: on GPUs,
with large batches and schedules, in runs that can be followed, stopped and continued.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from nnunetv2_pgl.checkpoint import EncoderCheckpoint, save_checkpoint
from nnunetv2_pgl.networks import ResNet50Encoder
from pretraining.alignment import align
from pretraining.data import find_scans, preprocess
from pretraining.objectives import ConvHead, local_consistency_loss, make_target, target_decay, update_target
from pretraining.views import IntensityRanges, apply_intensity, draw_intensity, render_views, sample_view_pair

VIEW = (16, 32, 32)  # voxels (z, y, x); the paper's views have 16 x 96 x 96
STRIDES = (4, 8, 8)  # so that a view has 4 x 4 x 4 cells; the weights do not depend on them
PAIRS = 4  # per step; the paper has 128

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", help="scans as NIfTI, NRRD, MetaImage or DICOM; labels are not needed")
parser.add_argument("modality", choices=("ct", "mr"))
parser.add_argument("checkpoint", type=Path, help="file to write")
parser.add_argument("--steps", type=int, default=30)
arguments = parser.parse_args()

# The scans, at their median spacing and z-scored: (1, D, H, W) each.
found, _ = find_scans([arguments.folder], arguments.modality)
with tempfile.TemporaryDirectory() as store:
    volumes, _ = preprocess(found, Path(store), crop_size=VIEW, processes=1)
    voxels = [volume.read(0, (0, 0, 0), volume.shape[1:]) for volume in volumes]
scans = [
    (torch.from_numpy(array.astype(np.float32))[None] - volume.mean[0]) / volume.std[0]
    for array, volume in zip(voxels, volumes, strict=True)
]

# Online path: encoder, projector, predictor. The target path follows it.
rng = np.random.default_rng(0)
torch.manual_seed(0)
encoder = ResNet50Encoder(strides=STRIDES, norm="instance", padding="replicate")
projector, predictor = ConvHead(2048, 4096, 256), ConvHead(256, 4096, 256)
target_encoder, target_projector = make_target(encoder), make_target(projector)
grid = encoder.feature_grid(VIEW)  # where the cells of the deepest map lie in a view
online = [*encoder.parameters(), *projector.parameters(), *predictor.parameters()]
optimizer = torch.optim.AdamW(online, lr=5e-4)

for step in range(arguments.steps):
    # Two views of each scan: crop, scale and flip, then intensity (section 3.2). Partners are half a batch apart.
    chosen = [scans[index] for index in rng.integers(len(scans), size=PAIRS)]
    pairs = [sample_view_pair(scan.shape[1:], VIEW, rng) for scan in chosen]
    geometries = [first for first, _ in pairs] + [second for _, second in pairs]
    partners = [second for _, second in pairs] + [first for first, _ in pairs]
    views = torch.cat([render_views(s, [g], VIEW) for s, g in zip(chosen * 2, geometries, strict=True)])
    views = apply_intensity(views, torch.from_numpy(draw_intensity(2 * PAIRS, IntensityRanges(), rng)))

    # Encode and project (eq. 3), then align: both maps on the part of the scan that two partners share (eq. 4 to 7).
    with torch.no_grad():
        target = target_projector(target_encoder(views)[-1])
    projection = projector(encoder(views)[-1])
    target, _ = align(target, geometries, partners, grid)
    aligned, _ = align(projection, geometries, partners, grid)

    # Predict the same places of the partner (eq. 8), in both directions (eq. 9).
    prediction = predictor(aligned)
    loss = local_consistency_loss(prediction[:PAIRS], target[PAIRS:])
    loss = loss + local_consistency_loss(prediction[PAIRS:], target[:PAIRS])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

    # The target path moves a little towards the online path (eq. 10).
    decay = target_decay(step, arguments.steps, base=0.9)
    update_target(target_encoder, encoder, decay)
    update_target(target_projector, projector, decay)
    print(f"step {step + 1} of {arguments.steps}: loss {loss.item():.5f}", flush=True)

# Only the online encoder is kept (section 3.1).
architecture = {"name": "resnet50", "norm": "instance", "centred": True, "padding": "replicate"}
architecture = {**architecture, "strides": list(STRIDES), "in_channels": 1}
made = {"method": "pgl", "architecture": architecture, "num_scans": len(scans), "view_size": list(VIEW)}
save_checkpoint(EncoderCheckpoint(encoder.state_dict(), made, nnssl_adaptation_plan={}), arguments.checkpoint)
print(f"""
Next, for a dataset with labels (DATASET is its id):
  nnUNetv2_plan_and_preprocess -d DATASET -c 3d_fullres
  export nnUNet_extTrainer="$(pgl_extension)"
  export PGL_CHECKPOINT="{arguments.checkpoint.resolve()}"
  nnUNetv2_train DATASET 3d_fullres 0 -tr nnUNetTrainerPGL""")
