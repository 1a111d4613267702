"""The storage of torch.distributed.checkpoint."""
