"""For tests and documentation: a small synthetic world, and contracts that its parts keep.

>>> from hllm.testing import world
>>> data = world(n_users=60, n_items=40)
"""

from hllm.testing.contracts import check_ranker as check_ranker
from hllm.testing.contracts import check_source as check_source
from hllm.testing.contracts import check_user_model as check_user_model
from hllm.testing.contracts import check_views as check_views
from hllm.testing.live import TinyLiveText as TinyLiveText
from hllm.testing.synthetic import chain as chain
from hllm.testing.synthetic import world as world
from hllm.testing.synthetic import world_tables as world_tables
