"""`pgl_compare`: initialisations against each other, at several fractions of the labels, through nnU-Net."""
