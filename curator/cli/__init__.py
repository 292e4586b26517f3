"""The command line: the same calls as the Python API, for shells and schedulers.

`--json` puts exactly one JSON object on the last line of stdout; progress and errors go to stderr. Exit codes: 0 ok,
1 failed, 2 usage or input, 75 try again (see `curator.errors`); of `refresh` also 3, a gate did not pass, and 99 on
request, nothing to do.

`entry` starts a command and reports its failure; `options` has what several commands take. Commands are plain
functions, by what they are about: `setup`, `lakes`, `learning`, `versions`, `refreshing`, `scoring`, `selections`,
`exports`.
Nothing heavy is imported before a command runs, so that `curator --help` is quick.
"""

from curator.cli.entry import main

__all__ = ["main"]
