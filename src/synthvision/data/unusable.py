"""The one error of reading pictures."""


class UnusableImage(ValueError):  # noqa: N818 - a finding about a file, seldom an error of the run
    """A file that gives no usable picture. The message is the reason, without the file's name."""
