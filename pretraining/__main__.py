"""So that ``torchrun --nproc_per_node=N -m pretraining ...`` works."""

from pretraining.entries import pretrain

if __name__ == "__main__":
    pretrain()
