"""What the service, its workers and every client share: the job contract, its errors, the models, and the client."""

from uvos.client import Client

__all__ = ["Client"]
