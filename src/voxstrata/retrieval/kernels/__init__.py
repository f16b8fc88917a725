"""Kernels that compute SeqSim's two sums of maxima, all with one interface (`base`)."""
