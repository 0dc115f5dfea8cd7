"""`python -m s2wrap`: the command line."""

from s2wrap.cli import main

if __name__ == "__main__":
    main()
