"""Retrievers: implementations of ``steper.protocols.Retriever``."""
