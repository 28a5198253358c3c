;;; Reads a file that Cuirass reads, and prints what it says as one line of JSON.
;;;
;;; Run by "guix repl" or by "guile", with three arguments: "guix" or "guile", "specifications" or "parameters", and
;;; an absolute file name. The forms of the file are compiled and run one by one, so that what goes wrong is known by
;;; its line. What the file prints goes to standard error: standard output is for the answer alone.
;;;
;;; The records of Cuirass are made anew here, with the fields and defaults of its own; each remembers where it stands
;;; in the file. The values are not looked at: that is done to the JSON, as to any other.

(define-module (gorget answer)
  #:export (%answer))

;; Whatever happens below, nothing but the answer is printed there.
(define %answer
  (let ((answer (duplicate-port (current-output-port) "w")))
    (set-port-encoding! answer "UTF-8")
    (dup2 2 1)
    answer))


;;; Records.

(define-module (gorget records)
  #:use-module (ice-9 match)
  #:use-module (srfi srfi-1)
  #:use-module (srfi srfi-9)
  #:export (define-record
            thing? thing-kind thing-value thing-places))

;; VALUES maps fields to values, PLACES fields, and #f for the whole, to (FILE . LINE).
(define-record-type <thing>
  (%make-thing kind values places)
  thing?
  (kind %thing-kind)
  (values thing-values)
  (places %thing-places))

(define (thing-kind thing) (%thing-kind thing))
(define (thing-places thing) (%thing-places thing))

(define (thing-value thing kind field)
  (unless (and (thing? thing) (eq? kind (thing-kind thing)))
    (scm-error 'wrong-type-arg #f "expected a ~a" (list kind) #f))
  (match (assq field (thing-values thing))
    ((_ . value) value)))

;; The values given win over those of BASE, a thing of the same kind or #f, and those over DEFAULTS.
(define (make-thing kind base given places defaults)
  (when base
    (unless (and (thing? base) (eq? kind (thing-kind base)))
      (scm-error 'wrong-type-arg #f "'inherit' expects a ~a" (list kind) #f)))
  (let ((add (lambda (new old)
               (append new (remove (lambda (entry) (assq (car entry) new)) old)))))
    (%make-thing kind
                 (add given (if base
                                (thing-values base)
                                (map (match-lambda ((field . default) (cons field (default))))
                                     defaults)))
                 (add places (if base (thing-places base) '())))))

(define (place form)
  (let ((source (syntax-source form)))
    (cons (and source (assq-ref source 'filename))
          (and source (assq-ref source 'line) (+ 1 (assq-ref source 'line))))))

(define (names fields)
  (string-join (map symbol->string fields) ", "))

;; The expansion of (KIND CLAUSE ...), for a kind with these fields, of which REQUIRED have no default.
(define (expand form kind fields required defaults)
  (define (wrong text clause)
    (syntax-violation kind text form clause))
  (syntax-case form ()
    ((_ clause ...)
     (let loop ((clauses #'(clause ...)) (base #f) (given '()))
       (syntax-case clauses ()
         (()
          (let ((missing (remove (lambda (field) (assq field given)) required)))
            (unless (or base (null? missing))
              (syntax-violation kind (format #f "the field ~a is missing" (car missing)) form))
            (with-syntax (((field ...) (map cadr (reverse given)))
                          ((value ...) (map caddr (reverse given)))
                          (places (datum->syntax
                                   #'loop
                                   (cons (cons #f (place form))
                                         (map (match-lambda
                                                ((name _ _ place) (cons name place)))
                                              given))))
                          (kind (datum->syntax #'loop kind))
                          (defaults defaults)
                          (base (or base #'#f)))
              #'(let ((from base))
                  (let* ((field value) ...)
                    (make-thing 'kind from (list (cons 'field field) ...) 'places defaults))))))
         (((name value) . rest)
          (identifier? #'name)
          (let ((field (syntax->datum #'name)))
            (cond ((and (eq? field 'inherit) (not base) (null? given))
                   (loop #'rest #'value given))
                  ((not (memq field fields))
                   (wrong (format #f "unknown field ~a; there are ~a" field (names fields))
                          (car (syntax->list clauses))))
                  ((assq field given)
                   (wrong (format #f "the field ~a is given twice" field)
                          (car (syntax->list clauses))))
                  (else
                   (loop #'rest base
                         (cons (list field #'name #'value (place (car (syntax->list clauses))))
                               given))))))
         ((other . rest)
          (wrong "expected (FIELD VALUE)" #'other)))))
    (_ (syntax-violation kind "expected fields, found none" form))))

(define (syntax->list form)
  (syntax-case form ()
    (() '())
    ((first . rest) (cons #'first (syntax->list #'rest)))))

;; (define-record KIND PREDICATE (FIELD ACCESSOR [DEFAULT]) ...)
(define-syntax define-record
  (lambda (form)
    (syntax-case form ()
      ((_ kind predicate (field accessor default ...) ...)
       (with-syntax ((required (filter-map (lambda (field default)
                                             (and (null? default) field))
                                           (syntax->datum #'(field ...))
                                           (syntax->datum #'((default ...) ...))))
                     (((optional value) ...)
                      (filter-map (lambda (field default)
                                    (syntax-case default ()
                                      (() #f)
                                      ((value) (list field #'value))))
                                  #'(field ...) #'((default ...) ...))))
         (with-syntax ((required (datum->syntax #'kind (syntax->datum #'required))))
           #'(begin
               (define (predicate object)
                 (and (thing? object) (eq? 'kind (thing-kind object))))
               (define (accessor object)
                 (thing-value object 'kind 'field))
               ...
               (define-syntax kind
                 (lambda (form)
                   (expand form 'kind '(field ...) 'required
                           #'(list (cons 'optional (lambda () value)) ...)))))))))))


;;; (guix channels), where Guix is missing.

(define-module (gorget channels)
  #:use-module (gorget records)
  #:use-module (ice-9 match)
  #:use-module (rnrs bytevectors)
  #:use-module (srfi srfi-9)
  #:export (channel channel? channel-name channel-url channel-branch channel-commit
            channel-introduction channel-location
            make-channel-introduction channel-introduction?
            channel-introduction-first-signed-commit channel-introduction-first-commit-signer
            openpgp-fingerprint openpgp-fingerprint->bytevector
            %default-guix-channel %default-channels guix-channel?))

(define-record channel channel?
  (name channel-name)
  (url channel-url)
  (branch channel-branch "master")
  (commit channel-commit #f)
  (introduction channel-introduction #f)
  (location channel-location #f))

(define-record-type <channel-introduction>
  (make-channel-introduction commit signer)
  channel-introduction?
  (commit channel-introduction-first-signed-commit)
  (signer channel-introduction-first-commit-signer))

(define (openpgp-fingerprint->bytevector text)
  (let ((digits (string-filter char-set:hex-digit text)))
    (u8-list->bytevector
     (let loop ((start 0))
       (if (< (+ start 1) (string-length digits))
           (cons (string->number (substring digits start (+ start 2)) 16)
                 (loop (+ start 2)))
           '())))))

(define (openpgp-fingerprint text)
  (openpgp-fingerprint->bytevector text))

(define %default-guix-channel
  (channel
   (name 'guix)
   (url "https://git.guix.gnu.org/guix.git")
   (introduction
    (make-channel-introduction
     "9edb3f66fd807b096b48283debdcddccfea34bad"
     (openpgp-fingerprint "BBB0 2DDF 2CEA F6A8 0D1D  E643 A2A0 6DF2 A33A 54FA")))))

(define %default-channels
  (list %default-guix-channel))

(define (guix-channel? channel)
  (eq? 'guix (channel-name channel)))


;;; Cuirass's modules.

(define-module (cuirass notification)
  #:use-module (gorget records)
  #:export (email email? email-from email-to email-server
            mastodon mastodon?))

(define-record email email?
  (from email-from)
  (to email-to)
  (server email-server))

(define-record mastodon mastodon?)

(define-module (cuirass parameters)
  #:export (%cuirass-database %cuirass-host %cuirass-url
            %zabbix-url %zabbix-user %zabbix-password
            %mastodon-instance-name %mastodon-instance-url %mastodon-instance-token
            current-logging-level mu-debug))

(define %cuirass-database (make-parameter "cuirass"))
(define %cuirass-host (make-parameter "/var/run/postgresql"))
(define %cuirass-url (make-parameter #f))
(define %zabbix-url (make-parameter #f))
(define %zabbix-user (make-parameter "Admin"))
(define %zabbix-password (make-parameter "zabbix"))
(define %mastodon-instance-name (make-parameter #f))
(define %mastodon-instance-url (make-parameter #f))
(define %mastodon-instance-token (make-parameter #f))
(define current-logging-level (make-parameter 'info))
(define mu-debug (make-parameter 0))


;;; From here on all is there but the specifications, which need the channels.

(define-module (gorget read)
  #:use-module (gorget answer)
  #:use-module (gorget records)
  #:use-module (ice-9 control)
  #:use-module (ice-9 exceptions)
  #:use-module (ice-9 format)
  #:use-module (ice-9 match)
  #:use-module (rnrs bytevectors)
  #:use-module (srfi srfi-1)
  #:use-module (system base compile)
  #:use-module (system vm frame))

(define-values (%with-guix? %kind %file)
  (match (command-line)
    ((_ interpreter kind file)
     (values (string=? interpreter "guix") kind file))))

;; The name that files know the channels' module by.
(unless %with-guix?
  (let ((channels (resolve-module '(guix channels) #f #:ensure #t)))
    (set-module-public-interface! channels (resolve-interface '(gorget channels)))))

(define-module (cuirass specification)
  #:use-module (gorget records)
  #:use-module (guix channels)
  #:export (specification specification? specification-name specification-build
            specification-channels specification-build-outputs specification-notifications
            specification-period specification-priority specification-systems
            specification-is-active?
            build-output build-output? build-output-job build-output-type build-output-output
            build-output-path
            %build-types))

(define %build-types
  '(all core custom channels guix hello images manifests packages system-tests tarball))

(define-record build-output build-output?
  (job build-output-job)
  (type build-output-type)
  (output build-output-output "out")
  (path build-output-path ""))

(define-record specification specification?
  (name specification-name)
  (build specification-build 'all)
  (channels specification-channels (list %default-guix-channel))
  (build-outputs specification-build-outputs '())
  (notifications specification-notifications '())
  (period specification-period 0)
  (priority specification-priority 9)
  (systems specification-systems (list (@@ (gorget read) %system)))
  (is-active? specification-is-active? #t))

;; Back, and now that they are there, with the channels.
(define-module (gorget read)
  #:use-module (guix channels))

(define %system
  (if %with-guix?
      ((module-ref (resolve-interface '(guix utils)) '%current-system))
      (match (string-split %host-type #\-)
        ((machine _ ...) (string-append machine "-linux")))))


;;; JSON.

(define (write-json value port)
  (match value
    (#t (display "true" port))
    (#f (display "false" port))
    ((? string?) (write-json-string value port))
    ((? number?) (write-number value port))
    (('object . members)
     (display "{" port)
     (fold (match-lambda*
             (((name . value) first?)
              (unless first? (display "," port))
              (write-json-string name port)
              (display ":" port)
              (write-json value port)
              #f))
           #t members)
     (display "}" port))
    (#(values ...)
     (display "[" port)
     (fold (lambda (value first?)
             (unless first? (display "," port))
             (write-json value port)
             #f)
           #t values)
     (display "]" port))))

(define (write-number number port)
  (if (exact-integer? number)
      (display number port)
      (display (if (rational? number) (exact->inexact number) "null") port)))

(define %special
  (char-set-union (char-set #\" #\\) (ucs-range->char-set 0 32)))

(define (write-json-string text port)
  (define (escape char)
    (if (char<? char #\space)
        (format port "\\u~4,'0x" (char->integer char))
        (begin (display "\\" port) (display char port))))
  (display "\"" port)
  (let loop ((start 0))
    (match (string-index text %special start)
      (#f (display (substring text start) port))
      (at (display (substring text start at) port)
          (escape (string-ref text at))
          (loop (+ at 1)))))
  (display "\"" port))

;; Members that are 'absent are left out; no value is a symbol.
(define (object . members)
  (cons 'object (remove (lambda (member) (eq? 'absent (cdr member))) members)))


;;; What goes wrong, and where.

;; An error of ours: where it is known, the field concerned.
(define (wrong field text . arguments)
  (throw 'wrong field (apply format #f text arguments)))

;; Values may be secrets: of most, a message tells the kind only.
(define (shown value)
  (match value
    ;; Like strings, numbers may be secrets.
    ((? number?) "a number")
    ((or (? symbol?) (? boolean?) (? char?) (? keyword?)) (format #f "~s" value))
    ((? procedure?) (format #f "the procedure ~a" (or (procedure-name value) "without a name")))
    ((? string?) "a string")
    (() "the empty list")
    (((? symbol?) ...) (format #f "~s" value))
    ((? pair?) "a list")
    ((? thing?) (format #f "a ~a" (thing-kind value)))
    ((? unspecified?) "nothing")
    (_ "something else")))

(define (message key arguments)
  (match (cons key arguments)
    (('wrong field text) text)
    (('syntax-error who what where form subform . _)
     (if who (format #f "~a: ~a" who what) what))
    (('syntax-error who what . _)
     (if who (format #f "~a: ~a" who what) what))
    (('quit . status) "it ends Guile")
    (('read-error _ text (values ...) . _)
     ;; The text begins with the place, which is told apart.
     (let ((text (apply format #f text values)))
       (match (string-contains text ": ")
         (#f text)
         (colon (substring text (+ 2 colon))))))
    ((_ _ (? string? text) (or (values ...) (and #f values)) . _)
     (catch #t
       (lambda ()
         (apply format #f (string-replace-all text "~S" "~a") (map shown (or values '()))))
       (lambda _ text)))
    (('%exception (? exception? exception) . _)
     (if (exception-with-message? exception)
         (exception-message exception)
         "an exception without a message"))
    (_ (format #f "an exception: ~a" key))))

(define (exception-with-message? exception)
  ((exception-predicate &message) exception))

(define (string-replace-all text from to)
  (let loop ((start 0))
    (match (string-contains text from start)
      (#f (substring text start))
      (at (string-append (substring text start at) to
                         (loop (+ at (string-length from))))))))

;; The place in FILE of the innermost frame that has one.
(define (frame-place stack)
  (let loop ((index 0))
    (and stack
         (< index (stack-length stack))
         (match (frame-source (stack-ref stack index))
           ((_ (? string? file) (? integer? line) . _)
            (if (string=? file %file)
                (cons file (+ 1 line))
                (loop (+ index 1))))
           (_ (loop (+ index 1)))))))

;; The value of THUNK. Ends this program with an error when something goes wrong in it; FALLBACK tells the place of a
;; field, or that of all, and JOBSET is the name of the specification that is looked at.
(define* (attempt thunk fallback #:optional (jobset 'absent))
  (define (fail key arguments stack)
    (let ((place (match (cons key arguments)
                   (('syntax-error _ _ (? pair? where) . _)
                    (cons (assq-ref where 'filename)
                          (and=> (assq-ref where 'line) 1+)))
                   (('wrong field . _) (fallback field))
                   (('read-error . _) (fallback #f))
                   (_ (or (frame-place stack) (fallback #f))))))
      (answer
       (object (cons "error"
                     (object (cons "file" (or (car place) %file))
                             (cons "line" (or (cdr place) 'absent))
                             (cons "jobset" jobset)
                             (cons "field" (match (cons key arguments)
                                             (('wrong (? string? field) . _) field)
                                             (_ 'absent)))
                             (cons "message" (message key arguments))))))))
  (let ((stack #f))
    (catch #t
      thunk
      (lambda (key . arguments)
        (fail key arguments stack))
      (lambda (key . arguments)
        (set! stack (make-stack #t))))))

(define (answer value)
  (write-json value %answer)
  (newline %answer)
  (force-output %answer)
  (primitive-_exit 0))


;;; The file.

;; The value of its last form, in a module with these others.
(define (load-file file interfaces)
  (define module (make-fresh-user-module))
  (for-each (lambda (name) (module-use! module (resolve-interface name))) interfaces)
  (let* ((port (attempt (lambda () (open-input-file file #:guess-encoding #t #:encoding "UTF-8"))
                        (lambda (field) (cons file #f))))
         (here (lambda (field) (cons file (+ 1 (port-line port))))))
    (set-port-filename! port file)
    (let loop ((value *unspecified*))
      (let ((form (attempt (lambda () (read port)) here)))
        (if (eof-object? form)
            value
            (let ((begins (or (and=> (and (supports-source-properties? form)
                                          (source-property form 'line))
                                     1+)
                              (+ 1 (port-line port)))))
              (loop (attempt (lambda ()
                               (save-module-excursion
                                (lambda ()
                                  (set-current-module module)
                                  (compile form #:env module #:optimization-level 1
                                           #:warning-level 0))))
                             (lambda (field) (cons file begins))))))))))

;; As JSON, whatever is there: what is none is named by its field.
(define (value->json value field)
  (match value
    ((? string?) value)
    ((? symbol?) (symbol->string value))
    ((? boolean?) value)
    ((? real?) value)
    ((values ...) (list->vector (map (lambda (value) (value->json value field)) values)))
    (_ (wrong field "expected text, a number, a truth value or a list, found ~a" (shown value)))))

(define (list-of convert values field)
  (unless (list? values)
    (wrong field "expected a list, found ~a" (shown values)))
  (list->vector (map convert values)))

(define (build->json build)
  (match build
    (((? symbol? kind) . (? pair? arguments))
     (object (cons (symbol->string kind)
                   (list-of (lambda (argument)
                              (if (and (eq? kind 'custom) (list? argument))
                                  ;; The name of a module.
                                  (format #f "~s" argument)
                                  (value->json argument "build")))
                            arguments "build"))))
    (_ (value->json build "build"))))

(define (channel->json channel)
  (unless (channel? channel)
    (wrong "channels" "expected a list of channels, found in it ~a" (shown channel)))
  (let* ((get (lambda (accessor) (accessor channel)))
         (branch (get channel-branch))
         (commit (get channel-commit))
         (is-reference? (lambda (prefix)
                          (and (not commit) (string? branch) (string-prefix? prefix branch))))
         (after (lambda (prefix) (substring branch (string-length prefix)))))
    (object (cons "name" (value->json (get channel-name) "channels"))
            (cons "url" (value->json (get channel-url) "channels"))
            (cons "branch" (cond (commit 'absent)
                                 ((is-reference? "refs/heads/") (after "refs/heads/"))
                                 ((is-reference? "refs/tags/") 'absent)
                                 (else (value->json branch "channels"))))
            (cons "tag" (if (is-reference? "refs/tags/") (after "refs/tags/") 'absent))
            (cons "commit" (if commit (value->json commit "channels") 'absent))
            (cons "introduction" (match (get channel-introduction)
                                   (#f 'absent)
                                   (introduction (introduction->json introduction)))))))

(define (introduction->json introduction)
  (unless (channel-introduction? introduction)
    (wrong "channels" "expected a channel introduction, found ~a" (shown introduction)))
  (let ((signer (channel-introduction-first-commit-signer introduction)))
    (object (cons "commit"
                  (value->json (channel-introduction-first-signed-commit
                                introduction)
                               "channels"))
            (cons "signer"
                  (if (bytevector? signer)
                      (string-concatenate
                       (map (lambda (byte) (string-upcase (format #f "~2,'0x" byte)))
                            (bytevector->u8-list signer)))
                      (value->json signer "channels"))))))

;; What is none is handed on as it is, for an error that says what was expected.
(define (thing->json thing kinds fields)
  (unless (and (thing? thing) (memq (thing-kind thing) kinds))
    (wrong (car fields) "expected ~{~a~^ or ~}, found ~a" kinds (shown thing)))
  (map (lambda (field)
         (cons (symbol->string field)
               (value->json (thing-value thing (thing-kind thing) field) (car fields))))
       (cdr fields)))

(define (notification->json notification)
  (if (and (thing? notification) (eq? 'mastodon (thing-kind notification)))
      (object (cons "type" "mastodon"))
      (apply object (cons "type" "email")
             (thing->json notification '(email mastodon) '("notifications" from to server)))))

(define (specification->json specification)
  (define (get field) (thing-value specification 'specification field))
  (apply object
         (cons "evaluator" "guix")
         (cons "build" (build->json (get 'build)))
         (cons "channels" (list-of channel->json (get 'channels) "channels"))
         (cons "build-outputs"
               (list-of (lambda (output)
                          (apply object
                                 (thing->json output '(build-output)
                                              '("build-outputs" job type output path))))
                        (get 'build-outputs) "build-outputs"))
         (cons "notifications"
               (list-of notification->json (get 'notifications) "notifications"))
         (map (lambda (field)
                (let ((name (json-name field)))
                  (cons name (value->json (get field) name))))
              '(name period priority systems is-active?))))

(define (json-name field)
  (match field
    ('is-active? "active")
    (_ (symbol->string field))))

;; The place of a field, by its name in JSON, or of the whole.
(define (place-of specification field)
  (or (any (match-lambda
             ((name . place) (and name field (string=? (json-name name) field) place)))
           (thing-places specification))
      (assq-ref (thing-places specification) #f)))

;; Where each field stands, by its name in JSON.
(define (places specification)
  (cons 'object
        (filter-map (match-lambda
                      ((field . ((? string? file) . (? integer? line)))
                       (cons (if field (json-name field) "") (vector file line)))
                      (_ #f))
                    (thing-places specification))))

(define (answer-specifications value)
  (unless (and (list? value)
               (every (lambda (element)
                        (and (thing? element) (eq? 'specification (thing-kind element))))
                      value))
    (attempt (lambda ()
               (wrong #f "the last value must be a list of specifications, it is ~a"
                      (match value
                        ((and (? list?) (not ()))
                         (format #f "a list with ~a in it"
                                 (shown (find (lambda (element)
                                                (not (and (thing? element)
                                                          (eq? 'specification
                                                               (thing-kind element)))))
                                              value))))
                        (_ (shown value)))))
             (lambda (field) (cons %file #f))))
  (answer
   (object
    (cons "specifications"
          (list->vector
           (map (lambda (specification)
                  (attempt (lambda () (specification->json specification))
                           (lambda (field) (place-of specification field))
                           (match (thing-value specification 'specification 'name)
                             ((? symbol? name) (symbol->string name))
                             ((? string? name) name)
                             (_ 'absent))))
                value)))
    (cons "places" (list->vector (map places value))))))

(define (answer-parameters)
  (define (get name)
    ((module-ref (resolve-interface '(cuirass parameters)) name)))
  (define (given . names)
    (filter-map (match-lambda
                  ((name . parameter)
                   (and=> (get parameter)
                          (lambda (value)
                            (cons name (value->json value (symbol->string parameter)))))))
                names))
  (answer
   (attempt
    (lambda ()
      (let ((mastodon (given '("name" . %mastodon-instance-name)
                             '("url" . %mastodon-instance-url)
                             '("token" . %mastodon-instance-token))))
        (object
         (cons "parameters"
               (apply object
                      (cons "mastodon" (if (null? mastodon) 'absent (apply object mastodon)))
                      (given '("url" . %cuirass-url)))))))
    (lambda (field) (cons %file #f)))))

(match %kind
  ("specifications"
   (answer-specifications
    (load-file %file '((guix channels) (cuirass notification) (cuirass specification)))))
  ("parameters"
   (load-file %file '((cuirass parameters)))
   (answer-parameters)))
