"""The parts of `tools/closed_loop.py`.

game.py          targets, cursor and trials; what a control program does with velocities. No socket, no clock
neurons.py       spiking neurons that an intention drives
user.py          the simulated user: sees the cursor late, intends, spikes. A process of its own
control.py       the control program, on rtdsae.Subscriber. A process of its own
rehearsal.py     user and game in simulated time: the calibration block
ideal_filter.py  Bayes' filter that knows the neurons' tuning, as a bundle
scores.py        what a condition's trials come to, with intervals
"""
