"""What has no gradient: buffers, offline datasets, environments and evaluation, run folders."""
