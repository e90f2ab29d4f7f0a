from typing import Any

# compiled from csrc/bindings; what is in it says of itself what it takes
def __getattr__(name: str) -> Any: ...
