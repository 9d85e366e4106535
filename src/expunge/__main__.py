"""`python -m expunge`: the command line."""

from expunge.cli import main

if __name__ == "__main__":
    main()
