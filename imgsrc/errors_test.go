package imgsrc

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"
)

func TestDamageOf(t *testing.T) {
	missing := fmt.Errorf("%w: f is missing: %w", ErrDamaged, fs.ErrNotExist)
	for text, err := range map[string]error{
		"damaged: f is missing: file does not exist": fmt.Errorf("opening layer 1: %w", Logged(Of(fs.ErrInvalid, missing))),
		"unexpected end: damaged":                    errors.Join(fs.ErrClosed, fmt.Errorf("unexpected end: %w", ErrDamaged)),
		"damaged":                                    ErrDamaged,
	} {
		if got := DamageOf(err); got.Error() != text {
			t.Errorf("%v: %q, want %q", err, got, text)
		}
	}
	if IsLogged(missing) || !IsLogged(fmt.Errorf("opening: %w", Logged(missing))) {
		t.Error("what is logged is not known")
	}
}
