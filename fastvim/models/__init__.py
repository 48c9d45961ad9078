"""Vision Mamba models: mixer, block, backbone, presets, checkpoints."""
