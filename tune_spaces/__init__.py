"""Search spaces: one file each, with a preset's name, objectives, first points and a sampler."""
