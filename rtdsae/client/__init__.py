"""What a closed-loop controller imports: it needs numpy and pyzmq, nothing else."""

from rtdsae.client.control import CONTROL, Control
from rtdsae.client.subscriber import ENDPOINT, Subscriber

__all__ = ["CONTROL", "ENDPOINT", "Control", "Subscriber"]
