"""The paper's measurements: interventions, where slack stands, repeats, sweeps, figures."""
