"""`python -m smx_cli` (and `torchrun -m smx_cli`)."""

from .main import main

if __name__ == "__main__":
    main()
