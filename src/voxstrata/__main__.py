"""`python -m voxstrata`: the program, also where the folder that pip puts `voxstrata` into is not on the PATH."""

if __name__ == "__main__":  # processes that are spawned may import this file, too
    from voxstrata.cli import main

    main()
