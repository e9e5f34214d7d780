"""The commands, one file each: the parser, one call into bnfold or service, and what is printed.

Each module has `add(commands)`, which declares its parser, and `run(options, console) -> exit code`. Only `run`
imports what the command needs, so that `bnfold --help` loads neither numpy nor a framework.
"""
