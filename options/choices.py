"""The choices of flags, as plain names: what they stand for is in the registries of data, models and training.

A test compares both. So the command line is parsed, and --help printed, without importing torch.
"""

PREPROCESS = ("resize_and_crop", "crop", "scale_width", "scale_width_and_crop", "none")
DIRECTIONS = ("AtoB", "BtoA")
DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("fp32", "bf16", "fp16")

GENERATORS = ("resnet_9blocks", "resnet_6blocks", "unet_256", "unet_128")
NOISE_GENERATORS = ("sagan", "sagan_resnet", "biggan")
DISCRIMINATORS = ("basic", "n_layers", "pixel")
FEATURE_DISCRIMINATORS = ("projected",)
IMAGE_DISCRIMINATORS = ("sagan", "sagan_resnet", "biggan")
NORMS = ("instance", "batch", "syncbatch", "none")
RESAMPLINGS = ("deconv", "nearest", "blur")
INIT_TYPES = ("normal", "xavier", "kaiming", "orthogonal")

LR_POLICIES = ("linear", "step", "plateau", "cosine")

METRICS = ("kid", "fid", "precision_recall", "l1", "psnr", "ssim", "cycle", "content")
FEATURES = ("lite0", "lite2")
