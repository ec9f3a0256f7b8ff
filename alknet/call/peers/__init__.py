"""Other nodes whose operations this one calls: who is attached, who is chosen, what is forwarded.

A peer is *attached* while at least one call session of it lives and it has said that it serves
calls. `PeerEnvironment` holds those, one per node; `PeerRef` says which of them a call is for.
"""

from alknet.call.peers.attached import AttachedPeer
from alknet.call.peers.environment import PeerEnvironment
from alknet.call.peers.policies import (
    First,
    LatencyWeighted,
    LeastInFlight,
    Policy,
    RoundRobin,
    Sticky,
)
from alknet.call.peers.reference import PeerRef

__all__ = [
    "AttachedPeer",
    "First",
    "LatencyWeighted",
    "LeastInFlight",
    "PeerEnvironment",
    "PeerRef",
    "Policy",
    "RoundRobin",
    "Sticky",
]
