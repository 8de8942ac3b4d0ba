"""A real Keycloak server for tests: how to build it, start it and talk to it."""
