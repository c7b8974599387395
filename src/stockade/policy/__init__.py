"""The policy file: its model, its layers, its presets, and the compiled form that `stockade run` reads. Decides nothing at run time."""
