"""Tuning of quantized models by gradients (extra `[train]`): the only room that imports PyTorch; nothing imports it before it is needed."""
