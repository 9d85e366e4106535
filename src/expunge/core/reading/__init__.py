"""What every reader of files needs: limits, strict JSON, and the header of safetensors files."""
