"""What a closed-loop controller imports: it needs numpy and pyzmq, nothing else."""

from rtdsae.client.subscriber import ENDPOINT, Subscriber

__all__ = ["ENDPOINT", "Subscriber"]
