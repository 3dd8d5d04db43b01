"""The `smx` command line: a thin shell over `smoothmix_deploy`. Installed as `smx_cli`."""
