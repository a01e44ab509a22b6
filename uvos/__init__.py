"""Shared by the service, the worker and every client: contract, errors, model registry, client, RLE."""

from uvos.client import Client

__all__ = ["Client"]
