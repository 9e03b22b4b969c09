package ops

import "time"

// waitsFor says why the job does not go on, and with "" that it does.
func (t *task) waitsFor(why string) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.waiting != why && !t.state.isOver() {
		t.waiting = oneLine(why)
		t.shown.at = time.Time{} // it is made anew
	}
}

// waits returns a function for imgsrc.WithWaiting: the job says why it does not go on, and the watchdog is quiet as long.
func (w *watchdog) waits(t *task) func(why string) {
	var goesOn func()
	return func(why string) {
		t.waitsFor(why)
		switch {
		case why != "" && goesOn == nil:
			goesOn = w.pause()
		case why == "" && goesOn != nil:
			goesOn()
			goesOn = nil
		}
	}
}
