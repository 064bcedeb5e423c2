"""So that ``torchrun --nproc_per_node=N -m pretraining ...`` works."""

from pretraining.cli import pretrain_entry

if __name__ == "__main__":
    pretrain_entry()
