"""The built image, in a real container: `make image-check`, `make image-size`, `make image-start`."""
