"""Trained Agent Attention for images: the module, the published models, loading, timm and dense tasks."""

from agentsd.vision.attention import AgentAttention as AgentAttention
from agentsd.vision.configs import ALIASES as ALIASES
from agentsd.vision.configs import CONFIGS as CONFIGS
from agentsd.vision.configs import VisionConfig as VisionConfig
from agentsd.vision.create import create_model as create_model
from agentsd.vision.files import load_weights as load_weights
from agentsd.vision.files import read_checkpoint as read_checkpoint
from agentsd.vision.flops import complexity as complexity
from agentsd.vision.flops import count_flops as count_flops
from agentsd.vision.model import AgentTransformer as AgentTransformer
from agentsd.vision.preprocess import evaluation_transform as evaluation_transform
from agentsd.vision.published import load_published as load_published
from agentsd.vision.published import to_published as to_published
from agentsd.vision.registry import register as register

register()
