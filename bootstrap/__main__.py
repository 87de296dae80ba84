"""`python -m bootstrap COMMAND` is `deep-bootstrap COMMAND`."""

from bootstrap.cli import main

main()
