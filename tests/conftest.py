"""Lets tests in every folder import what lies here: pytest puts the folder of a conftest on the import path."""
