"""From a run folder to an artefact that ships, through a gate that fails closed."""
