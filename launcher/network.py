"""What NCCL is told on networks where it does not find its way by itself.

A preset names the fast plugin where there is one, so that a node without it fails at once; by itself NCCL would fall
back to TCP and train at a tenth of the speed. Sources: NCCL's environment variables; AWS's aws-ofi-nccl and CSCS's and
Isambard's pages on Slingshot; Google's on TCPXO, whose plugin brings a script with its own settings.
"""

from typing import Literal

Network = Literal["none", "ib", "efa", "slingshot", "tcpxo"]

_PRESETS: dict[Network, dict[str, str]] = {
    "none": {},
    "ib": {"NCCL_NET": "IB"},
    "efa": {"FI_PROVIDER": "efa", "FI_EFA_USE_DEVICE_RDMA": "1", "NCCL_NET": "AWS Libfabric"},
    "slingshot": {"NCCL_NET": "AWS Libfabric", "NCCL_SOCKET_IFNAME": "hsn", "FI_CXI_DISABLE_HOST_REGISTER": "1"},
    "tcpxo": {"NCCL_NET": "FasTrak", "NCCL_SOCKET_IFNAME": "eth0"},
}


def network_variables(network: Network) -> tuple[tuple[str, str], ...]:
    """Environment variables of a preset."""
    return tuple(_PRESETS[network].items())
