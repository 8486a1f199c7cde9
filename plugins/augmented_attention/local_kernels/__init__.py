"""Local kernels f of the group or window, by name. A new kernel is one file and one import here."""

from lineahead.plugins.augmented_attention.local_kernels.base import LOCAL_KERNELS, LocalKernel
from lineahead.plugins.augmented_attention.local_kernels.capped_softmax import capped, capped_softmax
from lineahead.plugins.augmented_attention.local_kernels.relu2 import relu2
from lineahead.plugins.augmented_attention.local_kernels.softmax import softmax
from lineahead.plugins.augmented_attention.local_kernels.yoso import yoso

__all__ = ["LOCAL_KERNELS", "LocalKernel", "capped", "capped_softmax", "relu2", "softmax", "yoso"]
