"""The prompt wording of the offline world: no instruction, since its model knows one task."""

from steper.prompts import Template

TEMPLATE = Template(instruction="", passage="Passage: {title}. {text}")
