"""The one exception that is shown to users as a single line instead of a traceback."""


class InputError(ValueError):
    """Something the user gave (a parameter, a file, a folder) cannot be used.

    The message is one line: what came, what was expected and the usual fix. Command lines print it
    as `error: ...` and exit with status 2.
    """

    def __str__(self) -> str:
        return " ".join(super().__str__().split("\n"))
