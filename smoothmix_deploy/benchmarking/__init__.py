"""`smx bench`: how fast artefacts are on engines, raw and as certificates."""
