function subscriber(endpoint, array, mode, bins)
% Prints one array of what `rtdsae serve` publishes, a line a bin. Written from docs/wire.md alone; needs JeroMQ, ZeroMQ in Java:
%
%     javaaddpath('jeromq-0.6.0.jar')
%     subscriber('tcp://127.0.0.1:5556', 'factors', 'every')            % every bin, holes told
%     subscriber('tcp://127.0.0.1:5556', 'factors', 'newest', 1000)     % always the newest bin; ends after 1000
%
% A line is `seq t_bin flags value value ...`; whatever else there is to say begins with a #.
    if nargin < 3 || ~any(strcmp(mode, {'every', 'newest'}))
        error('usage: subscriber(ENDPOINT, ARRAY, ''every'' or ''newest''[, BINS])');
    end
    if nargin < 4, bins = inf; end
    newest = strcmp(mode, 'newest');
    context = javaObject('org.zeromq.ZContext');
    finish = onCleanup(@() context.close());

    % Every bin: schemas and bins on one socket, in the order in which they were sent. The newest bin: a socket that
    % conflates keeps one message of whatever kind, so that schemas need another.
    binSocket = openSocket(context, endpoint, newest);
    schemaSocket = binSocket;
    if newest
        schemaSocket = openSocket(context, endpoint, false);
        schemaSocket.setReceiveTimeOut(0);
    end
    schemaSocket.subscribe(topic('schema'));
    binSocket.subscribe(topic('latents'));

    me = struct('array', array, 'newest', newest, 'left', bins, 'schema', [], 'last', [], 'asked', 0);
    me.schemaSocket = schemaSocket;
    while me.left > 0
        frame = receive(binSocket);
        if newest, me = takeFrame(me, receive(schemaSocket)); end
        me = takeFrame(me, frame);
    end
end

function me = takeFrame(me, frame)
    if starts(frame, 'schema')
        me.schema = readSchema(frame(9:end), me.array, me.schema);
    elseif starts(frame, 'latents')
        bin = readBin(frame);
        if isempty(bin)
            fprintf('# a frame of %d bytes that is no bin of version 1 is passed over\n', numel(frame));
        else
            me = takeBin(me, bin);
        end
    end
end

function me = takeBin(me, bin)
    [me.last, came] = follow(me.last, bin, me.newest);
    if came, return, end
    schema = me.schema;
    if isempty(schema) || schema.id ~= bin.schema || schema.count ~= numel(bin.payload)
        fprintf('# seq %d is passed over: its schema %08x has not come\n', bin.seq, bin.schema);
        me = askForSchema(me);
    elseif schema.values > 0
        printBin(bin, double(bin.payload(schema.first + (1:min(schema.values, 8)))));
        me.left = me.left - 1;
    end
end

function me = askForSchema(me)
    if now - me.asked < 1 / 86400, return, end      % once a second is enough
    me.asked = now;
    me.schemaSocket.unsubscribe(topic('schema'));
    me.schemaSocket.subscribe(topic('schema'));
end

function socket = openSocket(context, endpoint, newest)
    socket = context.createSocket(javaMethod('valueOf', 'org.zeromq.SocketType', 'SUB'));
    socket.setLinger(0);
    socket.setReceiveTimeOut(100);      % ms: Ctrl-C is heard between two calls
    socket.setConflate(newest);         % before it connects
    socket.setHeartbeatIvl(1000);       % ms: a daemon's computer that fails says no goodbye, so ask it
    socket.setHeartbeatTimeout(5000);   % for a sign of life, and else connect anew
    socket.connect(endpoint);
end

function bytes = topic(name)
    bytes = zeros(1, 8, 'int8');        % a byte of Java is an int8
    bytes(1:numel(name)) = int8(name);
end

function frame = receive(socket)
    frame = zeros(1, 0, 'uint8');       % where nothing came in time
    bytes = socket.recv(0);
    if ~isempty(bytes), frame = unsigned(bytes); end
end

function bytes = unsigned(bytes)
    bytes = typecast(reshape(int8(bytes), 1, []), 'uint8');
end

function yes = starts(frame, name)
    yes = numel(frame) >= 8 && isequal(typecast(frame(1:8), 'int8'), topic(name));
end

function schema = readSchema(json, wanted, schema)
    try
        digest = javaMethod('getInstance', 'java.security.MessageDigest', 'SHA-256');
        hash = unsigned(digest.digest(typecast(json, 'int8')));
        found = struct('id', typecast(hash(1:4), 'uint32'), 'first', 0, 'values', 0, 'count', 0);
        if ~isempty(schema) && schema.id == found.id, return, end
        depth = cumsum(ismember(double(json), double('[{')) - ismember(double(json), double(']}')));
        if any(depth > 64), error('it is nested without end'); end      % which Octave's jsondecode does not survive
        described = jsondecode(native2unicode(json, 'UTF-8'));
        arrays = described.arrays;
        for k = 1:numel(arrays)
            if iscell(arrays), one = arrays{k}; else, one = arrays(k); end
            values = prod(one.shape);
            if strcmp(one.name, wanted), found.first = found.count; found.values = values; end
            found.count = found.count + values;
        end
    catch problem
        fprintf('# a schema that cannot be read is passed over: %s\n', problem.message);
        return
    end
    schema = found;
    if schema.values == 0, fprintf('# schema %08x has no array %s\n', schema.id, wanted); end
end

function bin = readBin(frame)
    bin = [];
    if numel(frame) < 64 || typecast(frame(9:10), 'uint16') ~= 1, return, end
    count = double(typecast(frame(61:64), 'uint32'));
    if numel(frame) ~= 64 + 4 * count, return, end
    bin.flags = typecast(frame(11:12), 'uint16');
    bin.run = typecast(frame(13:16), 'uint32');
    bin.seq = typecast(frame(17:24), 'uint64');
    bin.t_bin = typecast(frame(33:40), 'double');
    bin.schema = typecast(frame(57:60), 'uint32');
    bin.payload = typecast(frame(65:end), 'single');
end

% Tells restarts and holes; `came` for a bin that came before.
function [last, came] = follow(last, bin, newest)
    due = bin.seq;
    if ~isempty(last), due = last.seq + 1; end
    if ~isempty(last) && bin.run ~= last.run
        fprintf('# the daemon restarted: run %08x\n', bin.run);
        due = uint64(0);
    end
    if ~newest && bin.seq > due, fprintf('# %d bins are missing before seq %d\n', bin.seq - due, bin.seq); end
    came = bin.seq < due;
    if came
        fprintf('# seq %d is passed over: it came before\n', bin.seq);
    else
        last = struct('run', bin.run, 'seq', bin.seq);
    end
end

function printBin(bin, values)
    names = {'gap', 'anchored', 'late', 'swapped', 'backfill'};
    raised = bitget(bin.flags, 1:5) == 1;
    flags = '-';
    if any(raised), flags = strjoin(names(raised), '+'); end
    fprintf('%d %.9f %s%s\n', bin.seq, bin.t_bin, flags, sprintf(' %.9g', values));
end
