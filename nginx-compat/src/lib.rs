//! An nginx configuration as the gate understands it; empty until the first directive is translated.
