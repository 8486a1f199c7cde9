"""f(x) = relu(x)^2: FLASH's local attention (Hua et al., 2022, arXiv:2202.10447)."""

from lineahead.plugins.augmented_attention.local_kernels.base import LOCAL_KERNELS, LocalKernel

relu2 = LOCAL_KERNELS.register(LocalKernel(name="relu2", weigh=lambda scores, mask: scores.relu().square()))
