"""Every attribute and metric that dask-otel sends, once, and every cap; all names can be imported from here.

Names are a contract: dashboards and saved searches rest on them. Code takes them from here, and
``python docs/tables.py`` makes the tables of ``docs/attributes.md`` and ``docs/metrics.md`` from here.
"""

from .limits import *
from .metrics import *
from .span_attributes import *
