"""`python -m fastvim_cli`, the same as `fastvim`."""

from fastvim_cli.main import main

if __name__ == "__main__":
    main(prog_name="fastvim")
