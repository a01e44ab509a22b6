"""Shared by the service, the worker and every client: contract, errors, model registry, clients, RLE."""

from uvos.async_client import AsyncClient
from uvos.client import Client

__all__ = ["AsyncClient", "Client"]
